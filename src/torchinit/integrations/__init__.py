"""Integrations: bridges to other libraries, made when those are in use."""
