"""How a router asks an engine to go on with a request that another engine began. Read by the router and the plugin.

With `Capability.RESUME_EXACT` an engine takes, in `sampling_params.extra_args` of `POST /inference/v1/generate`,
the token ids that the request has already produced:

    {"token_ids": <the original prompt>,
     "sampling_params": {..., "max_tokens": <of the whole request>, "min_tokens": <of the whole request>,
                         "extra_args": {"resume_output_token_ids": [<committed ids>]}}}

They come back as *output* tokens: penalties, min_tokens and max_tokens count them, a grammar has accepted them, and a
seeded generator stands where it stood. The engine streams only the tokens that follow. An engine without the
capability would silently ignore the field: to it, send prompt + committed as the prompt, with the limits reduced.
"""

from __future__ import annotations

RESUME_OUTPUT_TOKEN_IDS = "resume_output_token_ids"  # noqa: S105 - tokens of text, no secret
