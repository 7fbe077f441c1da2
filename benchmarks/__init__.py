"""What a call costs and what a fault does, beside other libraries in the same run."""
