"""`python -m flashmesh.cli`: the `flash` command where its script is not at hand."""

from flashmesh.cli import main

main()
