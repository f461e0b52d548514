"""What people look at: the terminal, pictures, figures and the HTML report."""
