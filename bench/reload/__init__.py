"""The same certificate renewal, side by side: nginx, HAProxy, Caddy and botproxy.

Run `python -m bench.reload` (five minutes), then `python -m bench.reload.table`.
Two more programs hold botproxy alone to its word: `bench.reload.renewals`, `bench.reload.flat`.
What is measured, and what is not: README.md in this folder.

    __main__       which peer, which question, in which order; writes results.json
    site           a place for a peer
    bot                the bot; says which process asked it
    peers          a configuration for each; how they are run is in `bench.peers`
    clients        connections that are verified, each, from several processes
    sightings      what their answers say about who served which certificate when (pure)
    unasked under_load tickets mismatch      the four questions
    table          results.json as Markdown
"""
