"""The one training loop, the interface of a method, and the tools that methods share."""
