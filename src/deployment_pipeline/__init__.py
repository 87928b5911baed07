"""The deployment pipeline service."""
