"""What server and sites must agree on: messages, records, preflight, order of steps."""
