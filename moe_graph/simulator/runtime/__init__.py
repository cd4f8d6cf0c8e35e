"""The C runtime that stands where CANN's libraries would, its build, and what Python asks of it."""
