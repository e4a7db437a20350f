"""Bundle to answers: preprocessing, tokenizer, generation loop, backends."""
