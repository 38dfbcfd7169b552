"""A vendor for trials, tests and benchmarks: it speaks many APIs and misbehaves when asked to.

    python -m gateway.vendors.simulator --port 0 --tally FILE

prints `{"port": N}` when it listens. It stands in for these, below http://127.0.0.1:N:

    kind, base URL         what it answers, beside its list of models
    openai     /v1         chat completions, completions, responses, embeddings, images,
                           moderations, rerank
    openai     /mistral/v1 chat completions, fim completions, embeddings: as Mistral, which tells
                           usage in streams unasked
    anthropic              messages, count_tokens
    gemini                 generateContent, streamGenerateContent, countTokens
    cohere                 chat, embed and rerank of versions 1 and 2
    ollama                 chat, generate, embed

Any credential that is not empty and comes in the API's own header is good. One word is one token:
the input is counted in words, an answer has as many words as it was asked to have (1 to 1,000; else
20), each an event of a stream. A kilobyte of a file, begun, is one token more.

What it stores (responses, conversations, chat completions with `store`, files, batches, cached
contents, interactions) is kept in memory and answered on the vendors' own paths; a body that names
what is not there is a 404. What is to be fetched later is done when it is fetched; a batch is no
line of the tally.

The model's name asks for behaviour; a name that is not in this list is answered normally.

    sim-slow-E-M, sim-slow-ExM   a stream of E words, M milliseconds before each piece
    sim-big-N                    N megabytes of text (and a little more for its framing)
    sim-hang                     never answers
    sim-reset                    resets the connection before it answers
    sim-close                    closes the connection before it answers
    sim-cut                      breaks the connection in the middle of the answer
    sim-early                    ends its answer in the middle, as if it were whole
    sim-error                    an error inside the stream, in the middle of it
    sim-noend                    a line of the stream that never ends, until the client leaves
    sim-nohead                   a header that never ends, until the client leaves
    sim-garbage                  what it answers is not HTTP
    sim-nonsense                 a good head, and a body that is not of the format
    sim-status-N                 an error with status N (429, 503, 529 with a retry-after)
    sim-flaky-N-M                such an error for M calls of a session (or of a key), then a normal
                                 answer, and so on
    sim-badkey                   401 with the key in its message
    sim-echokey                  400 with the key in its message
    sim-redirect                 307 to another path, which would answer
    sim-headers-N                a normal answer with N headers more

The tally is the record that everybody else's is held against. Each call of an endpoint that
generates is a line of it before the first byte of its answer goes out, synced to disk:
`{"id", "session_id", "path", "model", "stream", "at", "key_sha256"}`, the id being that of the
answer's `x-request-id` or `request-id` header. When the whole answer was written there is a second
line, `{"id", "done": true, "at", "usage": {input_tokens,
output_tokens}}`; when the client left before, `{"id", "left": true, "at"}`.
"""
