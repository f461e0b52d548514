"""The checks of ``simmim verify``: the code against formulas written out a second time."""
