"""Apply rulesets: read the loaded rules, plan the changes to the wanted ones, execute the plan.

One engine a backend (:mod:`.engines`); the commands see no other part.
"""
