"""What all parts of the adapter share: `settings`, vLLM `versions`, the `clock`, what is `emulated`, names that vLLM
knows us by (`ours`), and what keeps a server alive (`safe`). Imports no other part."""
