"""What is trained (paper II.3, appendix 1, figure 4)."""
