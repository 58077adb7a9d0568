from newllm_lib.colab.background import check
from newllm_lib.colab.live import watch
from newllm_lib.runs import tail

watch(run)
print(*tail(run, 12), sep="\n")
check(started)
