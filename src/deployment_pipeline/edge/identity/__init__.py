"""Who calls: certificates, a mesh's header, JWTs, static tokens."""
