"""The verbs of the `framework` command; each module is imported only when its verb is called."""
