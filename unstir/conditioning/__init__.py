"""Conditioning: from words to a Condition."""
