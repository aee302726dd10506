"""How well the agents' graphs are inferred online: `predict` runs the policies' own tables over a `stream` of requests,
`score` and `drift` say how good that was, `picture` draws it. May import `policies.state`."""
