"""How good it is (paper II.3, abstract)."""
