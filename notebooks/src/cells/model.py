import torch
from newllm_lib.colab.explain import show_model
from newllm_lib.models import NewLLMConfig, NewLLMForCausalLM

torch.manual_seed(0)
sizes = dict(vocab_size=256, hidden_size=64, context_dim=64, mlp_size=128, num_hidden_layers=2)
network = NewLLMForCausalLM(NewLLMConfig(**sizes))
print(network)
show_model(network)
letters = torch.tensor([list(b"A context vector is carried from token to token. ")])
optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
loss = network(input_ids=letters, labels=letters).loss
loss.backward()
optimizer.step()
print(f"loss {loss:.3f} before the step, {network(input_ids=letters, labels=letters).loss:.3f} after it")
