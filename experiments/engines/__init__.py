"""Other engines that `specdec run` measures beside specdec: `backend=transformers`, `backend=vllm`."""
