"""Off-policy evaluation: what a policy would have earned, from what others did.

`policies` says what a target policy is, `paths` cuts datasets into stretches, `estimators` has weighted importance
sampling and the doubly robust estimator with their intervals, `fqe` the model of values that the latter and fitted Q
evaluation use. See docs/how-to/off-policy.md for what each assumes.
"""
