"""The prompts that come with specdec, in Spec-Bench's form, and the script that makes them."""
