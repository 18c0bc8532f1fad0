"""What a request becomes: checked against its limits and the memory, its prompt tokenised, its images written."""
