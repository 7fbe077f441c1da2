"""Local and hosted together, with faults: who takes over, how soon, and whether a call is lost."""
