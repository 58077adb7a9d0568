from newllm_lib.colab.chat_widget import chat

japanese = "_ja" in settings.name
conversation = chat(run, first="こんにちは。お元気ですか？" if japanese else "Hello! How are you today?")
