from newllm_lib.colab.chat_widget import chat

japanese = "_ja" in settings.name
first = "こんにちは。お元気ですか？" if japanese else "Hello! How are you today?"
conversation = chat(run, first=first, system=settings.extra["system"])
