"""What this package shows; a module is loaded when a name of it is first used."""

from newllm_lib.data.readers.chitchat import ChitChatSource as ChitChatSource
from newllm_lib.data.readers.conversions import (
    chosen_answer as chosen_answer,
    list_of_turns as list_of_turns,
    plain_text as plain_text,
    question_and_answer as question_and_answer,
)
from newllm_lib.data.readers.folder import FolderSource as FolderSource
from newllm_lib.data.readers.hub import HubSource as HubSource
from newllm_lib.data.readers.wikitext import WikiTextSource as WikiTextSource
