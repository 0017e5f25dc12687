"""Speech: sound in, phones out, frame by frame; a deep recurrent network hears, two heads say what it heard."""
