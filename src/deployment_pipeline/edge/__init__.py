"""The only room that knows gRPC and the generated code."""
