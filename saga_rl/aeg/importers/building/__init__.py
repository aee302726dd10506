"""From recorded calls to sessions: order, parents, joins, prefixes, what was assumed; and lengths from text.
May import `reading`, and no importer."""
