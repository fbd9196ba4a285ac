"""The schedule (paper II.3-4, appendix 2, figure 5)."""
