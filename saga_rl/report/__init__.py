"""What people look at: tables for a terminal, pictures, and one self-contained page. Every figure says whether it was
measured or simulated; nothing here computes a result. Imports no room."""
