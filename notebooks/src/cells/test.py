from newllm_lib.evaluation.evaluate_run import evaluate_run

figures = evaluate_run(run, baselines=True)
