"""What was served, written down: a `recorder` an engine, its `journal` files, and one trace of all (`merge`). May
import `sessions` and `config`."""
