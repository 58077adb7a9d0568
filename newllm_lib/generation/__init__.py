"""Text from a model: how it is read, continued and talked with, whatever the model carries from token to
token.

`stateful` says what that is, and reads text with it; `sampling` chooses the next token; `decoding` continues
text a token at a time. On top of these, `generate` completes many prompts at once and `chat` keeps a
conversation.
"""
