"""Which patches are hidden: counter-based random numbers, samplers that score, the mask itself."""
