import torch
from newllm_lib.colab.explain import show_model
from newllm_lib.models import Phase7Config, Phase7ForCausalLM

torch.manual_seed(0)
sizes = dict(vocab_size=256, hidden_size=64, num_attention_heads=2, context_dim=64, mlp_size=128, num_hidden_layers=2)
network = Phase7ForCausalLM(Phase7Config(**sizes, attention_window=16, htt_rank=4))
print(network)
show_model(network)
letters = torch.tensor([list(b"A context vector is carried from token to token. ")])
optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
loss = network(input_ids=letters, labels=letters).loss
loss.backward()
optimizer.step()
print(f"loss {loss:.3f} before the step, {network(input_ids=letters, labels=letters).loss:.3f} after it")
