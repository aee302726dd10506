"""The API server's side: `app`, the operator's routes (`admin`), `control` of engines, metrics (`poller`,
`prometheus`), `events`, and the middleware that knows sessions (`http/`). May import `routing`, `engine`, `sessions`,
`config`."""
