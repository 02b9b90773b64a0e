"""Arrays in, arrays out: each fast op beside its plain reference."""
