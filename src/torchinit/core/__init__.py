"""The model of the world: layouts, sites, fills, formulas, selectors, plans, runs and reports."""
