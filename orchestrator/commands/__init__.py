"""The commands of `kdctl`, by what they are for; each is a few lines around one function of the floors below."""
