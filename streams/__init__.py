"""The workers: source, router, entity stages, commits, outputs. The only room that knows Faust."""
