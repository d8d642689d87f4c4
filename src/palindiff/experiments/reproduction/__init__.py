"""The paper's tables and claims, measured again at one of several scales."""
