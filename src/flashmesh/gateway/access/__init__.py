"""Who may do what: pages and host names, scopes, tokens, certificates. Decisions are pure; the gate obeys them."""
