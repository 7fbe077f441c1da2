"""What a caller's protection is worth when its provider has less to give for a minute."""
