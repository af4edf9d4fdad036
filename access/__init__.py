"""Who may do what from where: tokens, sign-in, limits, audit, redaction. Knows no page, no runtime and no settings file."""
