"""Who a request belongs to and which tool it follows, found in plain HTTP: agents need not be changed.
May import `runtime.sessions` and `runtime.config`."""
