cd /work/main; . .venv/bin/activate; export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1; taskset -cp 1 $$ >/dev/null
lint() { ruff check "$@"; ruff format --check "$@"; }
