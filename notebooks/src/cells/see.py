from newllm_lib.colab.explain import show_gates, show_surprise

text = "Hi! How are you today? I work as a teacher in a small town, and I love my dogs. What about you?"
show_surprise(text, run)
show_gates(text, run);
