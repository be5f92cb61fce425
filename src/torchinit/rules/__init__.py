"""Rules: which sites get what: selectors, the names that recipes can say, and why a rule matches nothing."""
